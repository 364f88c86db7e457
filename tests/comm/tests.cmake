cmoe_test(comm/test_communicator RANKS 1 2 3 4 TIMEOUT 60)
cmoe_test(comm/test_launch)
cmoe_test(comm/test_rank_watch)
cmoe_test(comm/test_heartbeat RANKS 1 2 4 TIMEOUT 60)
