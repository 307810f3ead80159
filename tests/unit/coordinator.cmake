# Unit tests of coordinator/.
# Engine and cluster.
foreach(t kv_blocks placement scheduler)
    racklm_test(test_${t} LABEL unit SOURCES ${CMAKE_CURRENT_LIST_DIR}/test_${t}.c LIBS racklm_coordinator)
endforeach()
racklm_test(test_engine LABEL unit SOURCES ${CMAKE_CURRENT_LIST_DIR}/test_engine.c ${CMAKE_SOURCE_DIR}/tests/sim/fake_worker.c LIBS racklm_coordinator)
# Text.
foreach(t tokenizer detokenizer chat_template)
    racklm_test(test_${t} LABEL unit SOURCES ${CMAKE_CURRENT_LIST_DIR}/test_${t}.c LIBS racklm_coordinator)
endforeach()
racklm_test(test_cluster LABEL unit SOURCES ${CMAKE_CURRENT_LIST_DIR}/test_cluster.c LIBS racklm_coordinator)
