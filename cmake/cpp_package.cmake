# The kernels for C++ without torch: a static library, the headers it is called through, and its part of the CMake
# package `mvit_kernels`. Not part of a plain build; its objects are those of the torch library.

include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(MVIT_PACKAGE_FOLDER "${CMAKE_CURRENT_LIST_DIR}")

# Installs `target` as mvit_kernels::<name>, with csrc/common and the headers named, as install component "cpp". The CPU
# and the CUDA kernels are built by projects of their own; into one prefix they install one package.
function(mvit_cpp_package target name)
  set_target_properties(${target} PROPERTIES OUTPUT_NAME mvit_kernels_${name} EXPORT_NAME ${name})
  target_compile_features(${target} INTERFACE cxx_std_17)
  target_include_directories(${target} INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/mvit_kernels>)
  install(TARGETS ${target} EXPORT mvit_kernels-${name} COMPONENT cpp EXCLUDE_FROM_ALL)
  set(csrc "${MVIT_PACKAGE_FOLDER}/../csrc")
  file(GLOB common RELATIVE "${csrc}" CONFIGURE_DEPENDS "${csrc}/common/*.h")
  list(REMOVE_ITEM common common/glibc_floor.h) # for our own sources
  foreach(header IN LISTS common ARGN)
    get_filename_component(folder ${header} DIRECTORY)
    install(FILES "${csrc}/${header}" COMPONENT cpp EXCLUDE_FROM_ALL
            DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/mvit_kernels/${folder})
  endforeach()

  set(folder ${CMAKE_INSTALL_LIBDIR}/cmake/mvit_kernels)
  file(STRINGS "${MVIT_PACKAGE_FOLDER}/../mvit_kernels/__init__.py" version REGEX "^__version__ = ")
  string(REGEX REPLACE ".*\"(.*)\"" "\\1" version "${version}")
  write_basic_package_version_file("${CMAKE_BINARY_DIR}/mvit_kernels-config-version.cmake" VERSION ${version}
                                   COMPATIBILITY SameMinorVersion)
  install(FILES "${MVIT_PACKAGE_FOLDER}/mvit_kernels-config.cmake"
                "${CMAKE_BINARY_DIR}/mvit_kernels-config-version.cmake" DESTINATION ${folder} COMPONENT cpp
          EXCLUDE_FROM_ALL)
  install(EXPORT mvit_kernels-${name} NAMESPACE mvit_kernels:: DESTINATION ${folder} COMPONENT cpp EXCLUDE_FROM_ALL)
endfunction()
