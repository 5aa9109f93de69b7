/* How HDF5 writes its files here. Private to base. */
#ifndef TR_H5_DISK_H
#define TR_H5_DISK_H
#include <hdf5.h>

/* A file access list for new files. HDF5 1.10 is left broken by a write or close that fails half-way, and dies in the next
 * one or at exit; so files of this list never fail in its eyes. The first failure's errno goes to *error (0 before), what is
 * written later goes nowhere, and whoever holds *error looks at it after each call. *error outlives the file. The list is
 * the caller's to close; negative when HDF5 refuses. */
hid_t tr_h5_disk(int *error);

#endif
