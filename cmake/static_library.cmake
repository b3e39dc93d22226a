# The CPU kernels for C++ without torch: libmvit_kernels.a, the headers it is called through, and a CMake package.
#
# Not part of a plain build; its objects are those of the torch library.

include(GNUInstallDirs)

add_library(mvit_kernels_static STATIC EXCLUDE_FROM_ALL ${MVIT_CPU_OBJECTS})
set_target_properties(mvit_kernels_static PROPERTIES OUTPUT_NAME mvit_kernels EXPORT_NAME cpu)
target_compile_features(mvit_kernels_static INTERFACE cxx_std_17)
target_include_directories(mvit_kernels_static INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/mvit_kernels>)

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/mvit_kernels)
install(TARGETS mvit_kernels_static EXPORT mvit_kernels COMPONENT cpp EXCLUDE_FROM_ALL)
install(EXPORT mvit_kernels FILE mvit_kernels-config.cmake NAMESPACE mvit_kernels:: DESTINATION ${package_folder}
        COMPONENT cpp EXCLUDE_FROM_ALL)
foreach(header common/problem.h common/backward.h common/linear.h cpu/kernels.h)
  get_filename_component(folder ${header} DIRECTORY)
  install(FILES csrc/${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/mvit_kernels/${folder} COMPONENT cpp
          EXCLUDE_FROM_ALL)
endforeach()
