// The first process of a pod: holds its namespaces until it is killed.
#include <unistd.h>

int main(void) {
  for (;;) pause();
}
