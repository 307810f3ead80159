# racklm_fuzz_target(name SOURCES ... LIBS ...): the libFuzzer program build/fuzz/fuzz_<name>. Its folder tests/fuzz/<name>/
# holds corpus/ (valid inputs), dict, and reached (functions that a run must be seen to reach, one a line); tests/fuzz/run.sh
# runs it. The whole build is instrumented (RACKLM_FUZZ in the top CMakeLists.txt), so the libraries are the shipping sources.
if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "RACKLM_FUZZ needs clang: configure with CC=clang")
endif()
function(racklm_fuzz_target name)
    cmake_parse_arguments(T "" "" "SOURCES;LIBS" ${ARGN})
    add_executable(fuzz_${name} ${T_SOURCES})
    set_target_properties(fuzz_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
    target_link_libraries(fuzz_${name} PRIVATE ${T_LIBS})
    target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
    if(NOT TARGET racklm_fuzz)
        add_custom_target(racklm_fuzz) # ninja racklm_fuzz builds them all
    endif()
    add_dependencies(racklm_fuzz fuzz_${name})
endfunction()
