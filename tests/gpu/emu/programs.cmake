# What a user runs, with emulated GPUs: bin/racklm-worker beside copies of the other programs, which look for each other in their own folder.
add_executable(racklm-worker-emu ${PROJECT_SOURCE_DIR}/worker/main.c ${CMAKE_CURRENT_LIST_DIR}/gpu_support.c)
set_target_properties(racklm-worker-emu PROPERTIES OUTPUT_NAME racklm-worker RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/emu/bin)
target_link_libraries(racklm-worker-emu PRIVATE racklm_device_cuda racklm_comm_nccl racklm_worker racklm_cuda_emu)
foreach(program racklm racklm-coordinator)
    add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/emu/bin/${program} DEPENDS ${program}
                       COMMAND ln -f $<TARGET_FILE:${program}> ${CMAKE_BINARY_DIR}/emu/bin/${program})
    list(APPEND programs ${CMAKE_BINARY_DIR}/emu/bin/${program})
endforeach()
add_custom_target(racklm_emu_programs ALL DEPENDS racklm-worker-emu racklm_emu_nccl racklm_emu_cublaslt fake_nvml ${programs})

add_library(tests_runner_group_emu STATIC ${PROJECT_SOURCE_DIR}/tests/tools/runner_group.c)
target_compile_definitions(tests_runner_group_emu PRIVATE RUNNER_GROUP_CUDA)
target_link_libraries(tests_runner_group_emu PUBLIC racklm_device_cuda racklm_comm_nccl racklm_worker racklm_cuda_emu)
add_executable(racklm-logits-emu ${PROJECT_SOURCE_DIR}/tests/tools/logits.c)
set_target_properties(racklm-logits-emu PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
target_link_libraries(racklm-logits-emu PRIVATE racklm_device_cuda tests_runner_group_emu PkgConfig::jansson)

racklm_test(test_device_cuda_emu LABEL gpu SOURCES ${PROJECT_SOURCE_DIR}/tests/gpu/test_device_cuda.c LIBS racklm_device_cuda racklm_comm_nccl racklm_worker racklm_cuda_emu)
