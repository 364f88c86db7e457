cmoe_test(jobs/test_profile)
cmoe_test(jobs/test_carve TIMEOUT 300)
cmoe_test(jobs/test_refusals)
cmoe_test(jobs/test_settings)
