# Unit tests of proto/.
racklm_test(test_codec LABEL unit SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/test_codec.c ${CMAKE_CURRENT_SOURCE_DIR}/msg_random.c LIBS racklm_proto)
racklm_test(test_keys LABEL unit SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/test_keys.c LIBS racklm_proto)
racklm_test(test_link LABEL unit SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/test_link.c LIBS racklm_proto PkgConfig::zmq)
