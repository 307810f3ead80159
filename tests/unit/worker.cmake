# Unit tests of worker/: the compute half, then the process half.
racklm_test(test_sampler LABEL unit SOURCES ${CMAKE_SOURCE_DIR}/tests/unit/test_sampler.c LIBS racklm_worker)
racklm_test(test_comm LABEL unit SOURCES ${CMAKE_SOURCE_DIR}/tests/unit/test_comm.c LIBS racklm_worker)
racklm_test(test_inventory LABEL unit SOURCES ${CMAKE_SOURCE_DIR}/tests/unit/test_inventory.c LIBS racklm_worker)
