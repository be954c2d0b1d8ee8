export * from './ethernet.ts';
export * from './ip.ts';
export * from './linux.ts';
export * from './struct.ts';
export * from './vhost-user-parse.ts';
export * from './vhost-user.ts';
export * from './virtio-net.ts';
export * from './virtio.ts';
