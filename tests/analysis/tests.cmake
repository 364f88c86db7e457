cmoe_test(analysis/test_measures)
cmoe_test(analysis/test_analysis RANKS 1 2 3 4 TIMEOUT 60)
