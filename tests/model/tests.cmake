cmoe_test(model/test_python_sources)
