set(MODEL_TOOLS ${CMAKE_SOURCE_DIR}/tests/tools/gguf_write.c ${CMAKE_SOURCE_DIR}/tests/tools/tiny_model.c)
foreach(name quants gguf hparams shard vocab)
    racklm_test(test_${name} LABEL unit SOURCES test_${name}.c ${MODEL_TOOLS} LIBS racklm_model m)
endforeach()
