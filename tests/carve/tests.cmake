cmoe_test(carve/test_balanced_assignment)
cmoe_test(carve/test_markers)
cmoe_test(carve/test_reproducible_sum RANKS 1 2 3 4)
