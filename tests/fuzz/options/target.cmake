racklm_fuzz_target(options SOURCES ${CMAKE_CURRENT_LIST_DIR}/fuzz_options.c LIBS racklm_base)
