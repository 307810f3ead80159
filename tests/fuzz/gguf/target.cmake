racklm_fuzz_target(gguf SOURCES ${CMAKE_CURRENT_LIST_DIR}/fuzz_gguf.c LIBS racklm_model)
