# The instantiations of the CUDA kernels, one source file each, written into the build tree.
#
# Sets MVIT_CUDA_INSTANTIATIONS to the files, with the extension given: cu for nvcc, cpp for the emulation.

set(MVIT_TOKEN_TYPES f16 bf16 f32) # pooling and relative position
set(MVIT_ATTENTION_TYPES f16 bf16)
set(MVIT_ATTENTION_DIMS 48 64 80 96 128) # as in csrc/common/attention_tiles.h

function(mvit_cuda_instantiations extension)
  set(files)
  foreach(TYPE IN LISTS MVIT_ATTENTION_TYPES)
    foreach(DIM IN LISTS MVIT_ATTENTION_DIMS)
      foreach(KERNEL pooling_attention pooling_attention_backward)
        set(file "${CMAKE_BINARY_DIR}/instantiations/${KERNEL}_${TYPE}_${DIM}.${extension}")
        configure_file("${MVIT_CSRC}/cuda/instantiations/${KERNEL}.in" "${file}" @ONLY)
        list(APPEND files "${file}")
      endforeach()
    endforeach()
  endforeach()
  foreach(DIM IN LISTS MVIT_ATTENTION_DIMS)
    set(file "${CMAKE_BINARY_DIR}/instantiations/pooling_attention_f32_${DIM}.${extension}")
    configure_file("${MVIT_CSRC}/cuda/instantiations/pooling_attention_float32.in" "${file}" @ONLY)
    list(APPEND files "${file}")
  endforeach()
  foreach(TYPE IN LISTS MVIT_TOKEN_TYPES)
    set(file "${CMAKE_BINARY_DIR}/instantiations/attention_combine_${TYPE}.${extension}")
    configure_file("${MVIT_CSRC}/cuda/instantiations/attention_combine.in" "${file}" @ONLY)
    list(APPEND files "${file}")
  endforeach()
  foreach(TYPE IN LISTS MVIT_TOKEN_TYPES)
    foreach(name tokens tokens_backward attention_grad_sum)
      set(file "${CMAKE_BINARY_DIR}/instantiations/${name}_${TYPE}.${extension}")
      configure_file("${MVIT_CSRC}/cuda/instantiations/${name}.in" "${file}" @ONLY)
      list(APPEND files "${file}")
    endforeach()
  endforeach()
  set(MVIT_CUDA_INSTANTIATIONS ${files} PARENT_SCOPE)
endfunction()
