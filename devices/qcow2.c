/* qcow2 images. */
#include <errno.h>
#include <unistd.h>

#include "devices/block_image.h"

int block_qcow2_open(struct block_image **out, const struct block_file *file,
                     const struct block_open_options *o, const struct block_chain *chain, char *err,
                     size_t errlen)
{
    (void)out, (void)chain;
    close(file->fd);
    return block_error(err, errlen, -ENOTSUP,
                       "'%s' is a qcow2 image, which this version cannot use yet; convert it with "
                       "qemu-img convert -O raw",
                       o->path);
}
