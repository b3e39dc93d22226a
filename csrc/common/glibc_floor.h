// Keeps the library loadable on glibc 2.28, the floor of a manylinux_2_28 wheel, when it is linked against a newer one.
//
// Included ahead of every source by CMake's -include. A function that a later glibc gave a new version (exp and log
// with another error convention, dlsym moved between libraries) is bound to its first version, which every glibc has.
#pragma once

#if defined(__linux__) && !defined(__CUDACC__)
#if defined(__x86_64__)
#define MVIT_FIRST_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define MVIT_FIRST_GLIBC "GLIBC_2.17"
#endif
#ifdef MVIT_FIRST_GLIBC
__asm__(".symver exp,exp@" MVIT_FIRST_GLIBC);
__asm__(".symver log,log@" MVIT_FIRST_GLIBC);
__asm__(".symver pow,pow@" MVIT_FIRST_GLIBC);
__asm__(".symver dlsym,dlsym@" MVIT_FIRST_GLIBC);
#if defined(__x86_64__)
__asm__(".symver expf,expf@" MVIT_FIRST_GLIBC);
__asm__(".symver logf,logf@" MVIT_FIRST_GLIBC);
__asm__(".symver powf,powf@" MVIT_FIRST_GLIBC);
#endif
#endif
#endif
