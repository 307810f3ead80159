racklm_fuzz_target(template SOURCES ${CMAKE_CURRENT_LIST_DIR}/fuzz_template.c LIBS racklm_text)
