use super::*;

fn of(pieces: Vec<&'static [u8]>, each: Duration) -> Body {
    let pieces = tokio_stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(each).await;
        Ok::<_, std::io::Error>(piece)
    });
    Body::from_stream(pieces)
}

#[tokio::test(start_paused = true)]
async fn a_body_that_goes_on_coming_may_take_its_time_but_not_for_ever() {
    let slow = of(vec![b"{"; 9], Duration::from_secs(50));
    assert_eq!(whole(slow, 99, None).await.unwrap().bytes, b"{{{{{{{{{");
    let endless = of(vec![b"{"; 99], Duration::from_secs(50));
    let refused = whole(endless, 9999, Some(&Room::new(9999, 9999))).await.err();
    assert_eq!(refused, Some(ApiError::BodyTooSlow { seconds: 600, silent: false }));
    let silent = of(vec![b"{"; 9], Duration::from_secs(61));
    let refused = whole(silent, 99, None).await.err();
    assert_eq!(refused, Some(ApiError::BodyTooSlow { seconds: 60, silent: true }));
}

#[tokio::test(start_paused = true)]
async fn a_file_of_the_keeper_takes_any_time_and_only_the_memory_that_it_announces() {
    let slow = of(vec![b"{"; 99], Duration::from_secs(50));
    assert_eq!(whole(slow, 99, None).await.unwrap().bytes.len(), 99);
    let announced = Body::from(vec![b'{'; 3000]);
    assert_eq!(whole(announced, 1 << 40, None).await.unwrap().bytes.capacity(), 3000);
}

#[tokio::test]
async fn a_body_may_have_its_limit_and_no_byte_more() {
    let sixty = || of(vec![&[b' '; 20]; 3], Duration::ZERO);
    assert_eq!(whole(sixty(), 60, None).await.unwrap().bytes.len(), 60);
    let refused = whole(sixty(), 59, None).await.err();
    assert_eq!(refused, Some(ApiError::BodyTooLarge { limit: 59 }));
}

#[tokio::test]
async fn bodies_share_a_room_until_nobody_has_them_any_more() {
    let room = Room::new(100, 100);
    let sixty = || of(vec![&[b' '; 20]; 3], Duration::ZERO);
    let first = Bytes::from_owner(whole(sixty(), 99, Some(&room)).await.unwrap());
    let kept = first.slice(..1);
    drop(first);
    let refused = whole(sixty(), 99, Some(&room)).await.err();
    let overloaded = Refusal::Overloaded { retry_after_s: RETRY_AFTER_S };
    assert_eq!(refused, Some(ApiError::Refused(overloaded)));
    drop(kept);
    assert!(whole(sixty(), 99, Some(&room)).await.is_ok());
    assert_eq!(room.all.available_permits(), 100, "all of it is given back");
}

#[tokio::test]
async fn one_client_leaves_room_for_the_bodies_of_others() {
    let room = Room::new(240, 60);
    let sixty = || of(vec![&[b' '; 20]; 3], Duration::ZERO);
    let [ann, bob] = [1, 2].map(|client| room.of(Some(Client(client))));
    let hers = whole(sixty(), 99, Some(&ann)).await.unwrap();
    assert!(whole(sixty(), 99, Some(&room.of(Some(Client(1))))).await.is_err(), "it has its share");
    let his = whole(sixty(), 99, Some(&bob)).await.unwrap();
    drop(hers);
    let again = whole(sixty(), 99, Some(&ann)).await.unwrap();
    // Who cannot be told apart may have what there is.
    let all = (whole(sixty(), 99, Some(&room)).await, whole(sixty(), 99, Some(&room)).await);
    assert!(all.0.is_ok() && all.1.is_ok());
    drop((again, his, all, ann, bob));
    assert_eq!(room.all.available_permits(), 240);
    drop(room.of(None));
    assert!(room.of(Some(Client(3))).share.is_some() && room.shares.lock().unwrap().len() == 1);
}
