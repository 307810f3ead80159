# Unit tests of proto/.
racklm_test(test_codec LABEL unit SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/test_codec.c ${CMAKE_CURRENT_SOURCE_DIR}/msg_random.c LIBS racklm_proto)
racklm_test(test_keys LABEL unit SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/test_keys.c LIBS racklm_proto)
racklm_test(test_link LABEL unit SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/test_link.c LIBS racklm_proto PkgConfig::zmq)
# libzmq is not instrumented.
if(TARGET test_link AND RACKLM_SANITIZE MATCHES "thread")
    set_tests_properties(test_link PROPERTIES ENVIRONMENT "TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp")
endif()
