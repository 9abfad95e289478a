package com.thingspace.gateway;

import com.thingspace.esim.v1.DeviceCounts;
import com.thingspace.esim.v1.DeviceStatus;
import com.thingspace.esim.v1.RequestChange;
import com.thingspace.esim.v1.RequestState;
import com.thingspace.esim.v1.RequestStatus;
import java.util.List;

/** A new state of a request: a {@link Snapshot} or a {@link Change}. */
public sealed interface Update {
  /**
   * Returns the state of the request as a whole. Every state but PENDING is final.
   *
   * @return the state
   */
  RequestState state();

  /**
   * Returns the number of the last change of the request.
   *
   * @return the revision
   */
  long revision();

  /**
   * Returns the number of devices in each state.
   *
   * @return the counts
   */
  DeviceCounts counts();

  /**
   * Returns all devices of a snapshot, or the changed devices of a change.
   *
   * @return the devices
   */
  List<DeviceStatus> devices();

  /**
   * Returns the token with which a later watch continues after this update: see {@link
   * WatchOptions#withToken}.
   *
   * @return the token
   */
  String token();

  /**
   * The whole state of a request. It replaces all that is known about the request.
   *
   * @param status the state with all devices, in the sequence of the order
   * @param token the token with which a later watch continues
   */
  record Snapshot(RequestStatus status, String token) implements Update {
    @Override
    public RequestState state() {
      return status.getState();
    }

    @Override
    public long revision() {
      return status.getRevision();
    }

    @Override
    public DeviceCounts counts() {
      return status.getCounts();
    }

    @Override
    public List<DeviceStatus> devices() {
      return status.getDevicesList();
    }

    /** Returns a text without the token and without identities of devices. */
    @Override
    public String toString() {
      return "Snapshot[revision=" + revision() + ", state=" + state() + "]";
    }
  }

  /**
   * Consecutive changes of a request.
   *
   * @param change the changed devices, in the sequence of the changes; a device may occur more than
   *     once
   * @param token the token with which a later watch continues
   */
  record Change(RequestChange change, String token) implements Update {
    @Override
    public RequestState state() {
      return change.getState();
    }

    @Override
    public long revision() {
      return change.getRevision();
    }

    @Override
    public DeviceCounts counts() {
      return change.getCounts();
    }

    @Override
    public List<DeviceStatus> devices() {
      return change.getDevicesList();
    }

    /** Returns a text without the token and without identities of devices. */
    @Override
    public String toString() {
      return "Change[revision=" + revision() + ", state=" + state() + "]";
    }
  }
}
