# Benchmarks: built with the tests, run by hand. cmoe_bench(bench_x) builds tests/bench/bench_x.cpp.
find_package(benchmark REQUIRED)
if(NOT COMMAND cmoe_bench)
  function(cmoe_bench name)
    add_executable(${name} ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${name}.cpp)
    target_link_libraries(${name} PRIVATE cmoe_lib cmoe_kernels benchmark::benchmark)
  endfunction()
endif()

cmoe_bench(bench_assignment)
cmoe_bench(bench_markers)
cmoe_bench(bench_dispatch)
target_include_directories(bench_dispatch PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
