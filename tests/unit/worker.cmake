# Unit tests of worker/: the compute half, then the process half.
racklm_test(test_sampler LABEL unit SOURCES ${CMAKE_SOURCE_DIR}/tests/unit/test_sampler.c LIBS racklm_worker)
racklm_test(test_comm LABEL unit SOURCES ${CMAKE_SOURCE_DIR}/tests/unit/test_comm.c LIBS racklm_worker)
racklm_test(test_inventory LABEL unit SOURCES ${CMAKE_SOURCE_DIR}/tests/unit/test_inventory.c LIBS racklm_worker)
racklm_test(test_forward LABEL unit SOURCES ${CMAKE_SOURCE_DIR}/tests/unit/test_forward.c LIBS tests_runner_group PkgConfig::jansson)
if(TARGET test_forward)
    target_compile_definitions(test_forward PRIVATE MKMODEL="$<TARGET_FILE:mkmodel>")
    add_dependencies(test_forward mkmodel)
endif()
