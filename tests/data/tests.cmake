cmoe_test(data/test_tokenizer)
cmoe_test(data/test_tokenizer_gguf)
cmoe_test(data/test_tokenizer_vectors)
cmoe_test(data/test_text)
