cmoe_test(serve/test_admission)
cmoe_test(serve/test_batch_generation RANKS 1 2 3 4 8 TIMEOUT 120)
cmoe_test(serve/test_expert_parallel_commands TIMEOUT 180)
