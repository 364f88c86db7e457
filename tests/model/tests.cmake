cmoe_test(model/test_python_sources)
cmoe_test(model/test_transformer)
