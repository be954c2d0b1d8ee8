/** The vDPA family of generic netlink: commands and attributes. linux/vdpa.h. */

export const VDPA_GENL_NAME = 'vdpa';
export const VDPA_GENL_VERSION = 1;

/** enum vdpa_command */
export const VDPA_CMD_MGMTDEV_GET = 2;
export const VDPA_CMD_DEV_NEW = 3;
export const VDPA_CMD_DEV_DEL = 4;
export const VDPA_CMD_DEV_GET = 5;
export const VDPA_CMD_DEV_CONFIG_GET = 6;
export const VDPA_CMD_DEV_VSTATS_GET = 7;

/** enum vdpa_attr */
export const VDPA_ATTR_MGMTDEV_BUS_NAME = 1;
export const VDPA_ATTR_MGMTDEV_DEV_NAME = 2;
export const VDPA_ATTR_MGMTDEV_SUPPORTED_CLASSES = 3;
export const VDPA_ATTR_DEV_NAME = 4;
export const VDPA_ATTR_DEV_ID = 5;
export const VDPA_ATTR_DEV_VENDOR_ID = 6;
export const VDPA_ATTR_DEV_MAX_VQS = 7;
export const VDPA_ATTR_DEV_MAX_VQ_SIZE = 8;
export const VDPA_ATTR_DEV_MIN_VQ_SIZE = 9;
export const VDPA_ATTR_DEV_NET_CFG_MACADDR = 10;
export const VDPA_ATTR_DEV_NET_STATUS = 11;
export const VDPA_ATTR_DEV_NET_CFG_MAX_VQP = 12;
export const VDPA_ATTR_DEV_NET_CFG_MTU = 13;
export const VDPA_ATTR_DEV_NEGOTIATED_FEATURES = 14;
export const VDPA_ATTR_DEV_MGMTDEV_MAX_VQS = 15;
export const VDPA_ATTR_DEV_SUPPORTED_FEATURES = 16;
export const VDPA_ATTR_DEV_QUEUE_INDEX = 17;
export const VDPA_ATTR_DEV_VENDOR_ATTR_NAME = 18;
export const VDPA_ATTR_DEV_VENDOR_ATTR_VALUE = 19;
export const VDPA_ATTR_DEV_FEATURES = 20;
export const VDPA_ATTR_VDPA_DEV_SUPPORTED_FEATURES = 21;
