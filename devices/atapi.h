/*
 * The state of a CD/DVD-ROM drive (MMC-6), whose disc is taken out and put in while the guest runs.
 * The commands are in atapi.c; ata.h says how they arrive.
 */
#ifndef RINGSHIFT_DEVICES_ATAPI_H
#define RINGSHIFT_DEVICES_ATAPI_H

#include <stdbool.h>
#include <stdint.h>

#define ATAPI_PACKET  12
#define ATAPI_SECTOR  2048u
#define ATAPI_SENSE   18
#define ATAPI_CD_SIZE 360000u /* sectors (80 minutes); larger discs are DVDs */

struct ata_command;
struct ata_device;

enum atapi_event {
    ATAPI_EVENT_NONE = 0,
    ATAPI_EVENT_EJECT_REQUEST = 1,
    ATAPI_EVENT_NEW_MEDIA = 2,
    ATAPI_EVENT_REMOVAL = 3,
};

struct atapi {
    uint8_t sense_key, asc, ascq;          /* of the last command, for REQUEST SENSE */
    uint8_t attention_asc, attention_ascq; /* pending unit attention condition; 0, 0 = none */
    uint8_t event;                         /* enum atapi_event, for GET EVENT STATUS NOTIFICATION */
    bool tray_open;
};

void atapi_reset(struct ata_device *d);

/* Watches the drive's medium: a change is a unit attention condition and a media event. */
void atapi_attach(struct ata_device *d);

/* cmd->packet has been filled in: executes it. */
void atapi_execute(struct ata_command *cmd);

#endif
