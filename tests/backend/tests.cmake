cmoe_test(backend/test_products)
cmoe_test(backend/test_narrow_products)
cmoe_test(backend/test_elementwise)
cmoe_test(backend/test_attention)
cmoe_test(backend/test_cross_entropy)
cmoe_test(backend/test_cpu_info)
cmoe_test(backend/test_gradients)
cmoe_test(backend/test_gpu_info)

# What is asked for and not there ends the configuration: the first thing that CMakeLists.txt looks for is the toolkit.
function(cmoe_configure_refusal name message)
  add_test(NAME configure_${name} COMMAND ${CMAKE_COMMAND} -G ${CMAKE_GENERATOR} -S ${CMAKE_SOURCE_DIR}
           -B ${CMAKE_BINARY_DIR}/configure_${name} -DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON ${ARGN})
  set_tests_properties(configure_${name} PROPERTIES TIMEOUT 120 PASS_REGULAR_EXPRESSION "${message}")
endfunction()
cmoe_configure_refusal(cuda "CMOE_CUDA is ON, but no CUDA toolkit is found" -DCMOE_CUDA=ON)
cmoe_configure_refusal(nccl "CMOE_NCCL is ON, but CUDA is off" -DCMOE_NCCL=ON)
cmoe_configure_refusal(choice "CMOE_CUDA is 'PERHAPS'. expected AUTO, ON or OFF" -DCMOE_CUDA=PERHAPS)
cmoe_test(backend/test_gram)
cmoe_test(backend/test_cholesky)
# Eigen is the oracle.
target_link_libraries(test_backend_cholesky PRIVATE Eigen3::Eigen)
