/*
 * doca_build_config.h: which side of the card programs are built for
 *
 * Part of kvlane's software BlueField. Written by its authors: names, values and signatures
 * follow the DOCA interface so that one program builds against either; the words are ours.
 */
#ifndef DOCA_BUILD_CONFIG_H_
#define DOCA_BUILD_CONFIG_H_

/* The installer writes DOCA_ARCH_DPU here instead with --role dpu: programs ask for it with #ifdef. */
#define DOCA_ARCH_HOST

#endif /* DOCA_BUILD_CONFIG_H_ */
