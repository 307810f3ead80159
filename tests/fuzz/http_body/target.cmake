racklm_fuzz_target(http_body SOURCES ${CMAKE_CURRENT_LIST_DIR}/fuzz_http_body.c LIBS racklm_coordinator)
target_compile_definitions(fuzz_http_body PRIVATE DEMO_MODEL="${CMAKE_SOURCE_DIR}/deploy/demo/grimm-6m-Q8_0.gguf")
