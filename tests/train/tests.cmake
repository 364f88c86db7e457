cmoe_test(train/test_gradients)
cmoe_test(train/test_trainer RANKS 1 2 3 4)
cmoe_test(train/test_adapter)
cmoe_test(train/test_finetune)
