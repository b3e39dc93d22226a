// What libstdc++'s headers take from outside the library and older systems lack (see common/glibc_floor.h).
#include <new>
#include <sstream>

// glibc has it from 2.32 on. "This process may have several threads": reference counts stay atomic, as they must be
// beside PyTorch's threads.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

namespace std {
// libstdc++ has it from GCC 11 on.
__attribute__((visibility("hidden"), noreturn)) void __throw_bad_array_new_length() { throw bad_array_new_length(); }
// Their default constructors are in libstdc++ from GCC 9 on.
template class basic_ostringstream<char>;
template class basic_stringstream<char>;
} // namespace std
