# Puts the exported Python files into the program: python_sources.cpp in the build folder, made anew when they change.
foreach(name modeling configuration)
  set(file ${CMAKE_CURRENT_LIST_DIR}/${name}_cmoe.py)
  string(TOUPPER ${name} upper)
  file(READ ${file} CMOE_${upper}_SOURCE)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
endforeach()
configure_file(${CMAKE_CURRENT_LIST_DIR}/python_sources.cpp.in ${CMAKE_BINARY_DIR}/python_sources.cpp @ONLY)
target_sources(cmoe_lib PRIVATE ${CMAKE_BINARY_DIR}/python_sources.cpp)
