/* racklm-worker for tests of the agent: it has a GPU backend of the kind that TEST_GPU_SUPPORT names (cuda, else emulated) without having any kernels, and with TEST_CHILD_HANGS a worker
 * does nothing at all, as one that hangs in the driver. worker/main.c is in it under another name. */
#include "worker/gpu_support.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int worker_gpus_main(int argc, char **argv);

enum gpu_support gpu_support(void)
{
    const char *kind = getenv("TEST_GPU_SUPPORT");
    return kind && strcmp(kind, "cuda") == 0 ? GPU_SUPPORT_CUDA : GPU_SUPPORT_EMULATED;
}

int main(int argc, char **argv)
{
    while (argc > 1 && strcmp(argv[1], "--child") == 0 && getenv("TEST_CHILD_HANGS"))
        pause();
    return worker_gpus_main(argc, argv);
}
