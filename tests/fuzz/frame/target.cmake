racklm_fuzz_target(frame SOURCES ${CMAKE_CURRENT_LIST_DIR}/fuzz_frame.c ${CMAKE_SOURCE_DIR}/tests/unit/msg_random.c LIBS racklm_proto)
# Makes the seed corpus anew; not part of a build.
add_executable(frame_corpus EXCLUDE_FROM_ALL ${CMAKE_CURRENT_LIST_DIR}/make_corpus.c ${CMAKE_SOURCE_DIR}/tests/unit/msg_random.c)
target_link_libraries(frame_corpus PRIVATE racklm_proto)
