# Libraries by pkg-config; protobuf-c, hwloc and UCX are named by hand where a distribution ships no .pc file.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
foreach(pkg "zmq libzmq" "yaml yaml-0.1" "jansson jansson" "pcre2 libpcre2-8" "sodium libsodium" "event libevent_core libevent_extra libevent_pthreads"
            "hwloc hwloc" "protobufc libprotobuf-c" "curl libcurl" "utf8proc libutf8proc")
    string(REPLACE " " ";" parts "${pkg}")
    list(POP_FRONT parts name)
    pkg_check_modules(${name} REQUIRED IMPORTED_TARGET ${parts})
endforeach()
pkg_check_modules(ucx IMPORTED_TARGET ucx)
if(NOT ucx_FOUND)
    find_library(UCP_LIB ucp REQUIRED)
    find_library(UCS_LIB ucs REQUIRED)
    add_library(PkgConfig::ucx INTERFACE IMPORTED)
    target_link_libraries(PkgConfig::ucx INTERFACE ${UCP_LIB} ${UCS_LIB})
endif()
find_program(PROTOC_C protoc-c REQUIRED)

# racklm_test(name LABEL label SOURCES ... LIBS ...): a cmocka program registered with CTest; exit code 77 counts as skipped.
function(racklm_test name)
    if(NOT RACKLM_TESTS OR RACKLM_FUZZ)
        return()
    endif()
    cmake_parse_arguments(T "" "LABEL" "SOURCES;LIBS" ${ARGN})
    find_library(CMOCKA_LIB cmocka REQUIRED)
    add_executable(${name} ${T_SOURCES})
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
    target_link_libraries(${name} PRIVATE ${T_LIBS} ${CMOCKA_LIB})
    if(NOT TARGET tests_${T_LABEL})
        add_custom_target(tests_${T_LABEL}) # ninja tests_unit builds the unit tests only
    endif()
    add_dependencies(tests_${T_LABEL} ${name})
    add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
    # libucm, once linked, patches madvise and the like in the whole process; ThreadSanitizer crashes in its hook when a thread ends.
    set_tests_properties(${name} PROPERTIES LABELS "${T_LABEL}" TIMEOUT 300 SKIP_RETURN_CODE 77
                         ENVIRONMENT "UCX_MEM_EVENTS=n;UCX_MEM_MALLOC_HOOKS=n;UCX_MEM_MMAP_HOOK_MODE=none")
endfunction()
