# Unit tests of coordinator/.
# Engine and cluster.
foreach(t kv_blocks placement scheduler step)
    racklm_test(test_${t} LABEL unit SOURCES ${CMAKE_CURRENT_LIST_DIR}/test_${t}.c LIBS racklm_coordinator)
endforeach()
racklm_test(test_engine LABEL unit SOURCES ${CMAKE_CURRENT_LIST_DIR}/test_engine.c ${CMAKE_SOURCE_DIR}/tests/sim/fake_worker.c LIBS racklm_coordinator)
if(TARGET test_engine)
    target_link_options(test_engine PRIVATE -Wl,--wrap=queue_pop) # moves at the moment when a queue is found empty
endif()
racklm_test(test_cluster LABEL unit SOURCES ${CMAKE_CURRENT_LIST_DIR}/test_cluster.c LIBS racklm_coordinator)
# The libraries of these are not instrumented.
if(TARGET test_engine AND RACKLM_SANITIZE MATCHES "thread")
    set_tests_properties(test_engine test_cluster PROPERTIES ENVIRONMENT "TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp")
endif()
