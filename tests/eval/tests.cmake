cmoe_test(eval/test_perplexity RANKS 1 2 3 4 8 TIMEOUT 60)
