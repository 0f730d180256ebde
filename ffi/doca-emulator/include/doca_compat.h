/*
 * doca_compat.h: words that programs may use in their own declarations
 *
 * Part of kvlane's software BlueField. Written by its authors: names, values and signatures
 * follow the DOCA interface so that one program builds against either; the words are ours.
 */
#ifndef DOCA_COMPAT_H_
#define DOCA_COMPAT_H_

/* Programs count on these from the SDK's headers. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <doca_config.h>

/* Our prototypes carry no marks: which symbol is of which version stands in the libraries themselves. */
#define DOCA_USED __attribute__((used))
#define DOCA_STABLE __attribute__((visibility("default"))) DOCA_USED
#define DOCA_EXPERIMENTAL DOCA_STABLE
#define DOCA_DEPRECATED DOCA_STABLE

#ifdef __cplusplus
#define DOCA_NOEXCEPT noexcept
#else
#define DOCA_NOEXCEPT
#endif

#endif /* DOCA_COMPAT_H_ */
