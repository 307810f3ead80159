racklm_fuzz_target(tokenizer_json SOURCES ${CMAKE_CURRENT_LIST_DIR}/fuzz_tokenizer_json.c LIBS racklm_text)
