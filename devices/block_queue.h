/* Inside the block layer: between drives and the queue. */
#ifndef RINGSHIFT_DEVICES_BLOCK_QUEUE_H
#define RINGSHIFT_DEVICES_BLOCK_QUEUE_H

#include "devices/block.h"

/* Runs a checked request. */
void block_queue_start(struct block_queue *q, struct block_request *r);
/* Reports a request that needs no running. */
void block_queue_finish(struct block_queue *q, struct block_request *r, int result);
/* Sleeps until block_queue_poll() may have something to do. */
void block_queue_wait(struct block_queue *q);

/* The drive's part of a request's end: counts, and calls done(). */
void block_request_ended(struct block_request *r);

#endif
