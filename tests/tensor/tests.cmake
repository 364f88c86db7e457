cmoe_test(tensor/test_safetensors)
cmoe_test(tensor/test_gguf)
cmoe_test(tensor/test_dequantize)
cmoe_test(tensor/test_hostile_files)
