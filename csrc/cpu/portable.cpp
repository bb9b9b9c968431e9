// What lets a module that is built on a newer machine run from glibc 2.17 on (SLIMFAST_PORTABLE).
#include <pthread.h>

extern "C" {

// The headers ask glibc 2.32 and later whether the process has one thread alone. Here the answer is never.
extern __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

// glibc 2.34 moved it here from libpthread under a new version; the old one is in every glibc. The linker
// wraps it.
int slimfast_pthread_once(pthread_once_t* control, void (*routine)());
__asm__(".symver slimfast_pthread_once, pthread_once@GLIBC_2.2.5");
__attribute__((visibility("hidden"))) int __wrap_pthread_once(pthread_once_t* control, void (*routine)()) {
    return slimfast_pthread_once(control, routine);
}
}
