cmoe_test(base/test_parallel)
