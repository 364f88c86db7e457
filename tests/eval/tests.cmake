cmoe_test(eval/test_perplexity RANKS 1 2 3 4 8 TIMEOUT 60)
cmoe_test(eval/test_score_texts RANKS 1 2 3 4 8 TIMEOUT 60)
cmoe_test(eval/test_tasks RANKS 1 3 TIMEOUT 60)
