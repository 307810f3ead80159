racklm_fuzz_target(tokenizer SOURCES ${CMAKE_CURRENT_LIST_DIR}/fuzz_tokenizer.c LIBS racklm_text)
