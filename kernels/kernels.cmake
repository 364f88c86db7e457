# Every kernel source in kernels/cpu/isa is compiled once per instruction set, into its own namespace CMOE_ISA; src/backend
# picks one at run time. Always optimised: an unoptimised kernel makes the debug and sanitizer builds unusable.
# Products and sums are fused where a kernel says so, nowhere else: that keeps avx2 and avx512 equal to the bit.
file(GLOB CMOE_ISA_KERNELS CONFIGURE_DEPENDS kernels/cpu/isa/*.cpp)
add_library(cmoe_kernels STATIC)
target_include_directories(cmoe_kernels PUBLIC ${CMAKE_SOURCE_DIR})
target_link_libraries(cmoe_kernels PUBLIC cmoe_flags)

function(cmoe_add_kernels isa sources)
  add_library(cmoe_kernels_${isa} OBJECT ${sources})
  target_compile_definitions(cmoe_kernels_${isa} PRIVATE CMOE_ISA=${isa})
  target_compile_options(cmoe_kernels_${isa} PRIVATE -O3 ${ARGN})
  target_include_directories(cmoe_kernels_${isa} PRIVATE ${CMAKE_SOURCE_DIR})
  target_link_libraries(cmoe_kernels_${isa} PRIVATE cmoe_flags)
  target_sources(cmoe_kernels PRIVATE $<TARGET_OBJECTS:cmoe_kernels_${isa}>)
endfunction()

cmoe_add_kernels(generic "${CMOE_ISA_KERNELS}" -ffp-contract=fast)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(avx2 -mavx2 -mfma -mf16c)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  cmoe_add_kernels(avx2 "${CMOE_ISA_KERNELS}" -ffp-contract=off ${avx2})
  cmoe_add_kernels(avx512 "${CMOE_ISA_KERNELS}" -ffp-contract=off ${avx512})
  file(GLOB CMOE_BF16_KERNELS CONFIGURE_DEPENDS kernels/cpu/avx512_bf16/*.cpp)
  cmoe_add_kernels(avx512_bf16 "${CMOE_BF16_KERNELS}" -ffp-contract=off ${avx512} -mavx512bf16)
  target_compile_definitions(cmoe_kernels PUBLIC CMOE_X86=1)
endif()
# oneDNN's threads are OpenMP's; the backend tells that library to start none.
target_link_libraries(cmoe_kernels PUBLIC gomp)
