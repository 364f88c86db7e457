cmoe_test(carve/test_balanced_assignment)
cmoe_test(carve/test_markers)
