# Every kernel source in kernels/cpu/isa is compiled once per instruction set, into its own namespace CMOE_ISA; src/backend
# picks one at run time. Always optimised: an unoptimised kernel makes the debug and sanitizer builds unusable.
file(GLOB CMOE_ISA_KERNELS CONFIGURE_DEPENDS kernels/cpu/isa/*.cpp)
file(GLOB CMOE_COMMON_KERNELS CONFIGURE_DEPENDS kernels/cpu/*.cpp)
add_library(cmoe_kernels STATIC ${CMOE_COMMON_KERNELS})
target_include_directories(cmoe_kernels PUBLIC ${CMAKE_SOURCE_DIR})
target_link_libraries(cmoe_kernels PUBLIC cmoe_flags)

function(cmoe_add_isa name)
  add_library(cmoe_kernels_${name} OBJECT ${CMOE_ISA_KERNELS})
  target_compile_definitions(cmoe_kernels_${name} PRIVATE CMOE_ISA=${name})
  target_compile_options(cmoe_kernels_${name} PRIVATE -O3 -ffp-contract=fast ${ARGN})
  target_include_directories(cmoe_kernels_${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_link_libraries(cmoe_kernels_${name} PRIVATE cmoe_flags)
  target_sources(cmoe_kernels PRIVATE $<TARGET_OBJECTS:cmoe_kernels_${name}>)
endfunction()

cmoe_add_isa(generic)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  cmoe_add_isa(avx2 -mavx2 -mfma -mf16c)
  cmoe_add_isa(avx512 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  target_compile_definitions(cmoe_kernels PRIVATE CMOE_X86=1)
endif()
