# Unit tests of text/.
foreach(t tokenizer tokenizer_json tokenizer_random pretokenizer detokenizer chat_template reasoning chat_caps)
    racklm_test(test_${t} LABEL unit SOURCES ${CMAKE_CURRENT_LIST_DIR}/test_${t}.c LIBS racklm_text)
endforeach()
# The same against other implementations; each skips itself (77) where its PyPI packages are missing. RACKLM_PYTHON: an interpreter that has them.
if(RACKLM_TESTS AND NOT RACKLM_FUZZ)
    set(oracle ${CMAKE_SOURCE_DIR}/tests/oracle)
    add_test(NAME oracle_tokenizers COMMAND ${RACKLM_PYTHON} ${oracle}/tokenizers_oracle.py $<TARGET_FILE_DIR:test_tokenizer>/racklm-tokenize)
    add_test(NAME oracle_tokenizer_json COMMAND ${RACKLM_PYTHON} ${oracle}/tokenizer_json_oracle.py $<TARGET_FILE_DIR:test_tokenizer>/racklm-tokenize
        ${CMAKE_SOURCE_DIR}/../shared/data/tokenizers)
    add_test(NAME oracle_mistral COMMAND ${RACKLM_PYTHON} ${oracle}/mistral_oracle.py $<TARGET_FILE_DIR:test_tokenizer>/racklm-tokenize)
    add_test(NAME oracle_templates COMMAND ${RACKLM_PYTHON} ${oracle}/templates_oracle.py $<TARGET_FILE_DIR:test_tokenizer>/racklm-render
        ${CMAKE_SOURCE_DIR}/tests/data/templates ${CMAKE_SOURCE_DIR}/../shared/data/templates --all)
    add_test(NAME oracle_templates_fuzz COMMAND ${RACKLM_PYTHON} ${oracle}/templates_fuzz.py $<TARGET_FILE_DIR:test_tokenizer>/racklm-render) # 5 s; 60 s with RACKLM_FULL
    set_tests_properties(oracle_tokenizers oracle_tokenizer_json oracle_mistral oracle_templates oracle_templates_fuzz PROPERTIES LABELS unit TIMEOUT 900 SKIP_RETURN_CODE 77)
endif()
